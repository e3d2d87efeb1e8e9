"""Students of several teachers: answers of teachers of any kind, how they are combined, and students with several ends."""
