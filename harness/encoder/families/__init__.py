"""What differs between families of encoders: one short description each. One encoder runs all of them."""
