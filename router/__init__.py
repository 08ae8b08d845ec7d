"""Decides where each message goes, when it is tried again and when it is given up."""
