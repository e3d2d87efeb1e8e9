"""GEEP's rivals, one small file each, all through the registry that a third party uses."""
