"""nnU-Net v2: trainers for `nnUNetv2_train -tr`, found through `nnUNet_extTrainer`.

`python -m latentaug.integrations.nnunet` prints the folder to put there. See `docs/how-to/nnunet.md`.
"""
