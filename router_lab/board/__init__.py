"""What TensorBoard shows beyond scalars: pictures, layouts, the table of runs."""
