"""Tools of other people's programs: a client of the Model Context Protocol."""
