"""The worker side of `tsugi finetune`: data, model, the training story, evaluation, export."""
