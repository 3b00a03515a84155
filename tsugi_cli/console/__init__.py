"""What a person sees: the live picture, plain lines, status tables, the closing report, replays."""
