"""What a build is: the Cloud Build resource, how it is read, checked and written."""
