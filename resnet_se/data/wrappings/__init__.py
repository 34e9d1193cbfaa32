"""Other forms that images and labels come in, and how their files are read."""
