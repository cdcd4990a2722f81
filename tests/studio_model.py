"""A small model for the studio, and a program that serves it: ``python studio_model.py PORT``."""

import sys

import torch

from diffx import EDM, Denoiser, UNet
from diffx.text import Words


def model(classes=0, text=True):
    """A fresh model of 16 x 16 pictures."""
    torch.manual_seed(0)
    net = UNet(3, width=8, mults=(1, 2), blocks=1, classes=classes, tokens={"text": 8} if text else None)
    with torch.no_grad():
        for parameter in net.parameters():
            if parameter.abs().max() < 1e-3:
                parameter.normal_(std=0.1)
    words = Words(["a", "and", "blue", "circle", "red", "square"], 8, 1, 2) if text else None
    return EDM(Denoiser(net), shape=(3, 16, 16), text=words)


if __name__ == "__main__":
    from diffx.studio import Studio
    from diffx.studio.page import build

    torch.set_num_threads(1)
    build(Studio(model()), "diffx studio").launch(server_name="127.0.0.1", server_port=int(sys.argv[1]), share=False, quiet=True)
