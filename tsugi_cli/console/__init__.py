"""The console: the live picture, plain lines, status tables, the closing report, replays."""
