"""The delivery engine on a virtual clock, against models of receivers: `mta simulate`, and tests of hours."""
