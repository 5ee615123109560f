"""Hydra imports all that is in this namespace at every start: keep it light."""
