from .initialize import initialize as initialize
