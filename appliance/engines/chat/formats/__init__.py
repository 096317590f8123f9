"""The native tool-call formats, siblings of one protocol, recognised by what a template renders."""
