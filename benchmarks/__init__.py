"""Running times, memory and accuracy of gmmx and of its alternatives; see README.md."""
