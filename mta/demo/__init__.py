"""`mta demo`: a campaign through a real MTA into a small Internet on loopback, watched and accounted for."""
