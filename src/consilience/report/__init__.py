"""Tables, figures and pages made from plain data: records, arrays and pictures, fresh or read back from files."""
