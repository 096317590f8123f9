"""The one door out of the machine: opens what leaves, and checks it by its label."""
