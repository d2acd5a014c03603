"""Files in, bases out."""
