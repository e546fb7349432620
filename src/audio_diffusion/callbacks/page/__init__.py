"""A static page to listen to one or several runs, made from the files in their folders."""
