"""Train a model: ``python train.py experiment=ddpm_digits``. The same command resumes."""

from thaw.commands import train

if __name__ == "__main__":
    train()
