"""What is measured: profiles (data) and pytest-benchmark cells."""
