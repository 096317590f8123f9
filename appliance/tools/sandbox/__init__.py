"""Contains a tool's process: bubblewrap, else Landlock; what each mount and bound is for."""
