"""The files to serve a plan from: texts only, nothing is started here."""
