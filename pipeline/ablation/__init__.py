"""The paper's ablation on the world of shapes."""
