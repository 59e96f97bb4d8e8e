"""How far apart two mixtures are, and how much one of them leaves open."""
