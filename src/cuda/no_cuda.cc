// What a build without CUDA has in the place of src/cuda.
