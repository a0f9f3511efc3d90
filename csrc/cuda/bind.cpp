// The extension module `kd_kernels._cuda`: raw pointers in, nothing of torch. kd_kernels/backends/cuda is its only
// caller; it keeps the tensors alive until the call returns, and hands over the stream that is current for their
// device.
//
// Nothing here allocates memory of the device or waits for it: a call enqueues kernels, and may be captured in a graph.
#include <pybind11/pybind11.h>

#include "cuda/device.h"
#include "cuda/l1_cost.h"
#include "cuda/rows.h"
#include "cuda/scale.h"
#include "cuda/sinkhorn.h"
#include "kd/dtype.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;  // 0 where the headers say null

template <class T> T* pointer(Address a) { return reinterpret_cast<T*>(a); }
void* stream_at(Address a) { return pointer<void>(a); }

kd::L1Problems l1_problems(int64_t problems, int rows, int others, int columns, int dtype, Address student,
                           int64_t student_problem, int64_t student_row, Address student_mask, double student_rate,
                           Address teacher, int64_t teacher_problem, int64_t teacher_row, Address teacher_mask,
                           double teacher_rate, bool softmax, Address statistics) {
  kd::L1Problems of{};
  of.problems = problems;
  of.student = {pointer<void>(student),          student_problem, student_row, pointer<uint8_t>(student_mask), rows,
                static_cast<float>(student_rate)};
  of.teacher = {pointer<void>(teacher),         teacher_problem, teacher_row,
                pointer<uint8_t>(teacher_mask), others,          static_cast<float>(teacher_rate)};
  of.columns = columns;
  of.dtype = static_cast<kd::DType>(dtype);
  of.softmax = softmax;
  of.statistics = pointer<float>(statistics);
  return of;
}

void l1_cost(int device, Address stream, const kd::L1Problems& of, const kd::L1Cut& cut, Address sums, Address cost) {
  const kd::DeviceGuard guard(device);
  if (of.softmax) kd::l1_statistics(of, stream_at(stream));
  kd::l1_cost(of, cut, pointer<float>(sums), pointer<float>(cost), stream_at(stream));
}

void l1_cost_backward(int device, Address stream, const kd::L1Problems& of, Address upstream, int64_t upstream_problem,
                      int64_t upstream_row, int64_t upstream_column, double inverse_temperature, Address gradient,
                      int width, int64_t first_tile, int64_t tiles, Address gains, Address sums) {
  const kd::DeviceGuard guard(device);
  kd::L1Backward backward{};
  backward.upstream = pointer<float>(upstream);
  backward.upstream_strides[0] = upstream_problem;
  backward.upstream_strides[1] = upstream_row;
  backward.upstream_strides[2] = upstream_column;
  backward.inverse_temperature = static_cast<float>(inverse_temperature);
  backward.gradient = pointer<void>(gradient);
  backward.width = width;
  backward.first_tile = first_tile;
  backward.tiles = tiles;
  backward.gains = pointer<float>(gains);
  backward.sums = pointer<float>(sums);
  kd::l1_cost_backward(of, backward, stream_at(stream));
}

kd::cuda::SinkhornProblems sinkhorn_problems(int64_t problems, int64_t rows, int64_t columns, Address cost,
                                             int64_t problem_stride, int64_t row_stride, int64_t column_stride,
                                             int dtype, Address a, Address b, Address eps, Address lengths,
                                             int64_t iterations, bool entropic) {
  return {problems,
          rows,
          columns,
          pointer<void>(cost),
          problem_stride,
          row_stride,
          column_stride,
          static_cast<kd::DType>(dtype),
          pointer<float>(a),
          pointer<float>(b),
          pointer<double>(eps),
          pointer<int64_t>(lengths),
          iterations,
          entropic};
}

void sinkhorn(int device, Address stream, const kd::cuda::Device& properties, const kd::cuda::SinkhornProblems& of,
              Address start, double tolerance, Address value, Address f, Address g, Address plan, Address run,
              Address error, Address history, Address offsets, Address workspace) {
  const kd::DeviceGuard guard(device);
  const kd::cuda::SinkhornCall call{of,
                                    pointer<float>(start),
                                    tolerance,
                                    pointer<float>(value),
                                    pointer<float>(f),
                                    pointer<float>(g),
                                    pointer<float>(plan),
                                    pointer<int64_t>(run),
                                    pointer<float>(error),
                                    pointer<float>(history),
                                    pointer<double>(offsets),
                                    pointer<float>(workspace)};
  kd::cuda::run_sinkhorn(call, properties, stream_at(stream));
}

void sinkhorn_backward(int device, Address stream, const kd::cuda::Device& properties,
                       const kd::cuda::SinkhornProblems& of, Address upstream, Address plan_upstream, Address run,
                       Address history, Address offsets, Address cost_gradient, Address total, Address a_gradient,
                       Address b_gradient, Address workspace) {
  const kd::DeviceGuard guard(device);
  const kd::cuda::SinkhornBackwardCall call{of,
                                            pointer<float>(upstream),
                                            pointer<float>(plan_upstream),
                                            pointer<int64_t>(run),
                                            pointer<float>(history),
                                            pointer<double>(offsets),
                                            pointer<void>(cost_gradient),
                                            pointer<float>(total),
                                            pointer<float>(a_gradient),
                                            pointer<float>(b_gradient),
                                            pointer<float>(workspace)};
  kd::cuda::run_sinkhorn_backward(call, properties, stream_at(stream));
}

// `blocks` to a row, 0 where it is streamed, -1 for what suits.
void divergence_rows(int device, Address stream, int capability, int blocks, int64_t rows, int64_t columns,
                     int64_t width, int dtype, Address student, int64_t student_stride, Address teacher,
                     int64_t teacher_stride, Address gradient, Address weight, Address upstream, Address normalizer,
                     Address value, Address student_entropy, Address teacher_entropy,
                     double inverse_temperature_student, double inverse_temperature_teacher, double scale, int family,
                     double param_0, double param_1) {
  const kd::DeviceGuard guard(device);
  const auto type = static_cast<kd::DType>(dtype);
  kd::RowsCall call{};
  call.rows = rows;
  call.columns = columns;
  call.width = width;
  call.student = {pointer<void>(student), student_stride, type};
  call.teacher = {pointer<void>(teacher), teacher_stride, type};
  call.grad = {pointer<void>(gradient), width, type};
  call.weight = pointer<void>(weight);
  call.upstream = pointer<void>(upstream);
  call.value = pointer<void>(value);
  call.student_entropy = pointer<void>(student_entropy);
  call.teacher_entropy = pointer<void>(teacher_entropy);
  call.inverse_temperature_student = inverse_temperature_student;
  call.inverse_temperature_teacher = inverse_temperature_teacher;
  call.scale = scale;
  call.family = static_cast<kd::Family>(family);
  call.params[0] = param_0;
  call.params[1] = param_1;
  const kd::RowPlan plan = kd::plan_rows(columns, type, kd::keeps_terms(call.family), capability, blocks);
  kd::run_rows(call, pointer<float>(normalizer), plan, stream_at(stream));
}

kd::RowPlan row_plan(int64_t columns, int dtype, int family, int capability, int blocks) {
  return kd::plan_rows(columns, static_cast<kd::DType>(dtype), kd::keeps_terms(static_cast<kd::Family>(family)),
                       capability, blocks);
}

void scale(int device, Address stream, Address x, int64_t n, int dtype, Address factor) {
  const kd::DeviceGuard guard(device);
  kd::scale(pointer<void>(x), n, static_cast<kd::DType>(dtype), pointer<float>(factor), stream_at(stream));
}

}  // namespace

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
  py::class_<kd::L1Problems>(m, "L1Problems").def(py::init(&l1_problems));
  py::class_<kd::L1Cut>(m, "L1Cut")
      .def_readonly("tile", &kd::L1Cut::tile)
      .def_readonly("ranges", &kd::L1Cut::ranges)
      .def_readonly("width", &kd::L1Cut::width)
      .def_readonly("sums", &kd::L1Cut::sums);
  m.def(
      "l1_cut",
      [](int rows, int others, int columns, int64_t threads) { return kd::l1_cut(rows, others, columns, threads); },
      "How the costs of a problem are cut.");
  py::class_<kd::cuda::Device>(m, "Device").def(py::init([](int capability, int multiprocessors, int64_t shared_bytes) {
    return kd::cuda::Device{capability, multiprocessors, shared_bytes};
  }));
  py::class_<kd::cuda::SinkhornProblems>(m, "SinkhornProblems").def(py::init(&sinkhorn_problems));
  m.def("sinkhorn_workspace", &kd::cuda::sinkhorn_workspace, "How many float32 the kernels want for themselves.");
  m.def("sinkhorn", &sinkhorn);
  m.def("sinkhorn_backward", &sinkhorn_backward);
  m.def("l1_cost", &l1_cost);
  m.def("l1_cost_backward", &l1_cost_backward);
  m.attr("L1_GAIN_ROWS") = kd::kL1GainRows;
  m.attr("L1_GAIN_COLUMNS") = kd::kL1GainColumns;
  m.def("divergence_rows", &divergence_rows);
  m.def("scale", &scale);
  py::class_<kd::RowPlan>(m, "RowPlan")
      .def_readonly("blocks", &kd::RowPlan::blocks)
      .def_readonly("threads", &kd::RowPlan::threads)
      .def_readonly("slice", &kd::RowPlan::slice)
      .def_readonly("keeps", &kd::RowPlan::keeps)
      .def_readonly("shared_bytes", &kd::RowPlan::shared_bytes);
  m.def("row_plan", &row_plan, "How rows of so many columns are laid over a device of a compute capability.");
  py::dict families;
  families["kl"] = int(kd::Family::kKl);
  families["akl"] = int(kd::Family::kAkl);
  families["jsd"] = int(kd::Family::kJsd);
  families["teacher_mixture"] = int(kd::Family::kTeacherMixture);
  families["student_mixture"] = int(kd::Family::kStudentMixture);
  families["tvd"] = int(kd::Family::kTvd);
  families["todi"] = int(kd::Family::kTodi);
  m.attr("FAMILIES") = families;
}
