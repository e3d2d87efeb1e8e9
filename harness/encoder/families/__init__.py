"""What differs between families of encoders: one short description each. The code that runs them is one; no file runs any."""
