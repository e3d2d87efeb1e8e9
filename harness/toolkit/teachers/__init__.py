"""Students of several teachers: what teachers of any kind answer, how answers are joined, and students with several ends."""
