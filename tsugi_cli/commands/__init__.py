"""What stands behind `tsugi WORD`: one module for words that belong together. Heavy imports stay inside."""
