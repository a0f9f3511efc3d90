// The extension module `kd_kernels._cuda`: raw pointers in, nothing of torch. kd_kernels/backends/cuda is its only
// caller; it keeps the tensors alive until the call returns, and hands over the stream that is current on their device.
//
// Nothing here allocates memory of the device or waits for it: a call enqueues kernels, and may be captured in a graph.
#include <pybind11/pybind11.h>

#include "cuda/device.h"
#include "kd/dtype.h"

namespace py = pybind11;

PYBIND11_MODULE(_cuda, m, py::mod_gil_not_used()) {
  m.doc() = "CUDA kernels of kd_kernels.";
  m.attr("ARCHITECTURES") = KD_CUDA_ARCHITECTURES;
  m.attr("RUNTIME_VERSION") = kd::runtime_version();
  m.def("driver_version", &kd::driver_version, "Newest runtime that the driver serves; 0 where there is no driver.");
  py::dict dtypes;
  dtypes["float32"] = int(kd::DType::kFloat32);
  dtypes["bfloat16"] = int(kd::DType::kBFloat16);
  dtypes["float16"] = int(kd::DType::kFloat16);
  m.attr("DTYPES") = dtypes;
}
