"""What goes to the Hub: chosen, checked, described, sent."""
