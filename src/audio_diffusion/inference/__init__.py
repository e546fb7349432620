"""The Python API: loads trained models, generates and edits audio with them, and exports them."""
