"""The workshop: experiments as settings, the store of runs, sweeps on all cores or a cluster, the bank of results."""
