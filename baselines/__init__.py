"""The methods that GEEP is compared with, a small file each. May import the harness only."""
