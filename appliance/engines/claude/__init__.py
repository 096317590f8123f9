"""Engine claude: a Claude model behind the Messages API, over a client lent by egress."""
