"""CHANGE a code: one family a file, one class a method; knows no model."""
