"""Mathematics: the networks as `nn.Module`s, from torch and a config alone."""
