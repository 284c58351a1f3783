"""The stages of a build, cut into tasks, on the cores of this machine or on a Ray cluster."""
