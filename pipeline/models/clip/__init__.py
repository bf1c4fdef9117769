"""CLIP: weights in transformers' and open_clip's layouts, tokenizer, preprocessing, features and scores."""
