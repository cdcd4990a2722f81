"""A controller that remembers the cross-attention it has seen."""

from diffx.networks import AttentionController


class Watcher(AttentionController):
    """Probabilities and sites, by layer."""

    def __init__(self):
        self.seen, self.sites = {}, {}

    def wants(self, site):
        return site.kind == "cross"

    def probs(self, probs, site):
        self.seen[site.layer], self.sites[site.layer] = probs, site
        return probs
