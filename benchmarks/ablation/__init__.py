"""The paper's ablation on the Shapes toy dataset: where the negative prompt goes in training."""
