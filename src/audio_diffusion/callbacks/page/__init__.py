"""What does one listen to and look at? A static page of one run or several, made from the files of their folders."""
