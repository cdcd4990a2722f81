"""A callback that writes down what each rank was shown."""

from pathlib import Path

import lightning as L


class ShapesLog(L.Callback):
    """A line per micro-batch in ``<folder>/rank<R>.txt``: the pictures' size and the indices."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch, *_) -> None:
        height, width = batch["x"].shape[2:]
        with open(self.folder / f"rank{trainer.global_rank}.txt", "a") as file:
            file.write(f"{height}x{width} {','.join(map(str, batch['index'].tolist()))}\n")
