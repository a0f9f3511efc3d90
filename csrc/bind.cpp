// The extension module `kd_kernels._core`: raw pointers in, nothing of torch. kd_kernels/backends/cpu.py is its only
// caller; it checks every argument before a pointer crosses, and keeps the tensors alive until the call returns.
#include <pybind11/pybind11.h>

#include "cpu/driver.h"
#include "cpu/gradient_memory.h"
#include "cpu/outer_product.h"
#include "cpu/transport.h"

namespace py = pybind11;

namespace {

using Address = uintptr_t;

void* pointer(Address a) { return reinterpret_cast<void*>(a); }

// Flat positional scalars: converting them is most of the cost of a small call. Addresses are 0 where RowsCall says
// null, strides in elements, dtypes, family and reduction as the tables below number them.
void divergence_rows(int64_t rows, int64_t columns, int64_t width, Address student, int64_t student_stride,
                     int student_dtype, Address teacher, int64_t teacher_stride, int teacher_dtype, Address grad,
                     Address weight, Address upstream, Address normalizer, Address value, Address loss,
                     Address student_entropy, Address teacher_entropy, double inverse_temperature_student,
                     double inverse_temperature_teacher, double scale, int family, double param0, double param1,
                     int reduction, int threads) {
  const auto dtype = static_cast<kd::DType>(student_dtype);
  kd::RowsCall call{};
  call.rows = rows;
  call.columns = columns;
  call.width = width;
  call.student = {pointer(student), student_stride, dtype};
  call.teacher = {pointer(teacher), teacher_stride, static_cast<kd::DType>(teacher_dtype)};
  call.grad = {pointer(grad), width, dtype};
  call.weight = pointer(weight);
  call.upstream = pointer(upstream);
  call.value = pointer(value);
  call.student_entropy = pointer(student_entropy);
  call.teacher_entropy = pointer(teacher_entropy);
  call.inverse_temperature_student = inverse_temperature_student;
  call.inverse_temperature_teacher = inverse_temperature_teacher;
  call.scale = scale;
  call.family = static_cast<kd::Family>(family);
  call.params[0] = param0;
  call.params[1] = param1;
  const kd::Total total{static_cast<kd::Reduction>(reduction), pointer(normalizer), pointer(loss)};
  py::gil_scoped_release release;
  kd::run_rows(call, total, threads);
}

// Likewise; `gradient` is 0 where the tails are wanted.
void tail_rows(int64_t rows, int64_t columns, int64_t width, int64_t slots, Address logits, int64_t stride, int dtype,
               Address ids, Address weight, Address tail, double inverse_temperature, Address gradient,
               int64_t gradient_stride, Address entries, Address tail_factor, int threads) {
  kd::TailCall call{};
  call.rows = rows;
  call.columns = columns;
  call.width = width;
  call.slots = slots;
  call.logits = {pointer(logits), stride, static_cast<kd::DType>(dtype)};
  call.gradient = {pointer(gradient), gradient_stride, call.logits.dtype};
  call.ids = static_cast<const int64_t*>(pointer(ids));
  call.weight = pointer(weight);
  call.tail = pointer(tail);
  call.entries = pointer(entries);
  call.tail_factor = pointer(tail_factor);
  call.inverse_temperature = inverse_temperature;
  py::gil_scoped_release release;
  kd::run_tail(call, threads);
}

// Addresses of bfloat16 factors and of a float32 sum, strides in elements.
void outer_product(int64_t rows, int64_t columns, int64_t width, Address g, int64_t g_stride, Address x,
                   int64_t x_stride, Address sum, int64_t sum_stride, float gain, bool add, int threads) {
  const kd::OuterProduct product{rows,       columns,
                                 width,      static_cast<const uint16_t*>(pointer(g)),
                                 g_stride,   static_cast<const uint16_t*>(pointer(x)),
                                 x_stride,   static_cast<float*>(pointer(sum)),
                                 sum_stride, gain,
                                 add};
  py::gil_scoped_release release;
  kd::outer_product(product, threads);
}

void divergence_slice(int pass, int64_t rows, int64_t columns, Address student, int64_t student_stride,
                      int student_dtype, Address teacher, int64_t teacher_stride, int teacher_dtype, Address grad,
                      int64_t grad_stride, Address weight, double inverse_temperature_student,
                      double inverse_temperature_teacher, int family, double param, bool entropies, Address statistics,
                      Address state, Address sums, Address factor, int threads) {
  const auto dtype = static_cast<kd::DType>(student_dtype);
  kd::SliceCall call{};
  call.pass = static_cast<kd::SlicePass>(pass);
  call.rows = rows;
  call.columns = columns;
  call.student = {pointer(student), student_stride, dtype};
  call.teacher = {pointer(teacher), teacher_stride, static_cast<kd::DType>(teacher_dtype)};
  call.grad = {pointer(grad), grad_stride, dtype};
  call.weight = static_cast<const double*>(pointer(weight));
  call.inverse_temperature_student = inverse_temperature_student;
  call.inverse_temperature_teacher = inverse_temperature_teacher;
  call.family = static_cast<kd::Family>(family);
  call.param = param;
  call.entropies = entropies;
  call.statistics = static_cast<double*>(pointer(statistics));
  call.state = static_cast<const double*>(pointer(state));
  call.sums = static_cast<double*>(pointer(sums));
  call.factor = static_cast<const double*>(pointer(factor));
  py::gil_scoped_release release;
  kd::run_slice(call, threads);
}

kd::SinkhornProblems sinkhorn_problems(int64_t problems, int64_t rows, int64_t columns, Address cost,
                                       int64_t problem_stride, int64_t row_stride, int dtype, Address a, Address b,
                                       Address eps, Address lengths, int64_t iterations, bool entropic) {
  kd::SinkhornProblems of{};
  of.problems = problems;
  of.rows = rows;
  of.columns = columns;
  of.cost = {{pointer(cost), row_stride, static_cast<kd::DType>(dtype)}, problem_stride};
  of.a = pointer(a);
  of.b = pointer(b);
  of.eps = static_cast<const double*>(pointer(eps));
  of.lengths = static_cast<const int64_t*>(pointer(lengths));
  of.iterations = iterations;
  of.entropic = entropic;
  return of;
}

void sinkhorn(int64_t problems, int64_t rows, int64_t columns, Address cost, int64_t problem_stride, int64_t row_stride,
              int dtype, Address a, Address b, Address eps, Address lengths, int64_t iterations, bool entropic,
              Address start, double tolerance, Address value, Address f, Address g, Address plan, Address run,
              Address error, Address history, Address offsets, int threads) {
  kd::SinkhornCall call{};
  call.of = sinkhorn_problems(problems, rows, columns, cost, problem_stride, row_stride, dtype, a, b, eps, lengths,
                              iterations, entropic);
  call.start = pointer(start);
  call.tolerance = tolerance;
  call.value = pointer(value);
  call.f = pointer(f);
  call.g = pointer(g);
  call.plan = pointer(plan);
  call.run = static_cast<int64_t*>(pointer(run));
  call.error = pointer(error);
  call.history = pointer(history);
  call.offsets = static_cast<double*>(pointer(offsets));
  py::gil_scoped_release release;
  kd::run_sinkhorn(call, threads);
}

void sinkhorn_backward(int64_t problems, int64_t rows, int64_t columns, Address cost, int64_t problem_stride,
                       int64_t row_stride, int dtype, Address a, Address b, Address eps, Address lengths,
                       int64_t iterations, bool entropic, Address upstream, Address plan_upstream, Address run,
                       Address history, Address offsets, Address cost_gradient, Address a_gradient, Address b_gradient,
                       int threads) {
  kd::SinkhornBackwardCall call{};
  call.of = sinkhorn_problems(problems, rows, columns, cost, problem_stride, row_stride, dtype, a, b, eps, lengths,
                              iterations, entropic);
  call.upstream = pointer(upstream);
  call.plan_upstream = pointer(plan_upstream);
  call.run = static_cast<const int64_t*>(pointer(run));
  call.history = pointer(history);
  call.offsets = static_cast<const double*>(pointer(offsets));
  call.cost_gradient = pointer(cost_gradient);
  call.a_gradient = pointer(a_gradient);
  call.b_gradient = pointer(b_gradient);
  py::gil_scoped_release release;
  kd::run_sinkhorn_backward(call, threads);
}

// The gradient from `upstream` and the statistics where `gradient` is not 0, else statistics and costs.
void l1_cost(int64_t problems, int64_t rows, int64_t others, int64_t columns, int64_t width, Address student,
             int64_t student_problem, int64_t student_stride, int student_dtype, Address teacher,
             int64_t teacher_problem, int64_t teacher_stride, int teacher_dtype, Address student_mask,
             Address teacher_mask, double inverse_temperature_student, double inverse_temperature_teacher, bool softmax,
             Address statistics, Address cost, Address upstream, Address gradient, int threads) {
  kd::L1Call call{};
  call.problems = problems;
  call.rows = rows;
  call.others = others;
  call.columns = columns;
  call.width = width;
  call.student = {{pointer(student), student_stride, static_cast<kd::DType>(student_dtype)}, student_problem};
  call.teacher = {{pointer(teacher), teacher_stride, static_cast<kd::DType>(teacher_dtype)}, teacher_problem};
  call.student_mask = static_cast<const uint8_t*>(pointer(student_mask));
  call.teacher_mask = static_cast<const uint8_t*>(pointer(teacher_mask));
  call.inverse_temperature_student = inverse_temperature_student;
  call.inverse_temperature_teacher = inverse_temperature_teacher;
  call.softmax = softmax;
  call.statistics = pointer(statistics);
  call.cost = pointer(cost);
  call.upstream = pointer(upstream);
  call.gradient = pointer(gradient);
  py::gil_scoped_release release;
  gradient ? kd::run_l1_cost_backward(call, threads) : kd::run_l1_cost(call, threads);
}

void sorted_l1(int64_t rows, int64_t student_columns, int64_t teacher_columns, int64_t limit, Address student,
               int64_t student_stride, int student_dtype, Address teacher, int64_t teacher_stride, int teacher_dtype,
               Address factor, double inverse_temperature_student, double inverse_temperature_teacher, Address loss,
               Address gradient, int threads) {
  kd::SortedCall call{};
  call.rows = rows;
  call.student_columns = student_columns;
  call.teacher_columns = teacher_columns;
  call.limit = limit;
  call.student = {pointer(student), student_stride, static_cast<kd::DType>(student_dtype)};
  call.teacher = {pointer(teacher), teacher_stride, static_cast<kd::DType>(teacher_dtype)};
  call.factor = pointer(factor);
  call.inverse_temperature_student = inverse_temperature_student;
  call.inverse_temperature_teacher = inverse_temperature_teacher;
  call.loss = pointer(loss);
  call.gradient = pointer(gradient);
  py::gil_scoped_release release;
  kd::run_sorted_l1(call, threads);
}

// The memory of one gradient as a buffer of bytes, given back when the last tensor over it is gone.
class GradientMemory {
 public:
  explicit GradientMemory(size_t bytes) : bytes_(bytes), pages_(kd::take_pages(bytes)) {}
  ~GradientMemory() { kd::give_pages(pages_); }
  GradientMemory(const GradientMemory&) = delete;
  GradientMemory& operator=(const GradientMemory&) = delete;

  py::buffer_info buffer() {
    return {pages_.data, 1, py::format_descriptor<uint8_t>::format(), static_cast<py::ssize_t>(bytes_)};
  }

 private:
  size_t bytes_;
  kd::Pages pages_;
};

}  // namespace

PYBIND11_MODULE(_core, m, py::mod_gil_not_used()) {
  m.doc() = "CPU kernels of kd_kernels.";
  m.def("divergence_rows", &divergence_rows);
  m.def("tail_rows", &tail_rows);
  m.def("outer_product", &outer_product);
  m.def("has_outer_product", &kd::has_outer_product, "Whether this processor has the instructions of outer_product.");
  m.def("divergence_slice", &divergence_slice);
  m.def("sinkhorn", &sinkhorn);
  m.def("sinkhorn_backward", &sinkhorn_backward);
  m.def("l1_cost", &l1_cost);
  m.def("sorted_l1", &sorted_l1);
  py::class_<GradientMemory>(m, "GradientMemory", py::buffer_protocol())
      .def(py::init<size_t>(), py::arg("bytes"))
      .def_buffer(&GradientMemory::buffer);
  m.def("release_pages", &kd::release_pages, "Give memory kept for the next gradient back to the system.");
  py::enum_<kd::Simd>(m, "Simd")
      .value("scalar", kd::Simd::kScalar)
      .value("avx2", kd::Simd::kAvx2)
      .value("avx512", kd::Simd::kAvx512);
  m.def("best_simd", &kd::best_simd, "Widest instruction set of this processor that the module has code for.");
  m.def("simd", &kd::simd, "Instruction set in use.");
  m.def("limit_simd", &kd::limit_simd, py::arg("simd"), "Use no wider instruction set than this; for tests.");
  py::dict dtypes, families, reductions, slice_passes;
  dtypes["float32"] = int(kd::DType::kFloat32);
  dtypes["bfloat16"] = int(kd::DType::kBFloat16);
  dtypes["float16"] = int(kd::DType::kFloat16);
  dtypes["float64"] = int(kd::DType::kFloat64);
  families["kl"] = int(kd::Family::kKl);
  families["akl"] = int(kd::Family::kAkl);
  families["jsd"] = int(kd::Family::kJsd);
  families["teacher_mixture"] = int(kd::Family::kTeacherMixture);
  families["student_mixture"] = int(kd::Family::kStudentMixture);
  families["tvd"] = int(kd::Family::kTvd);
  families["todi"] = int(kd::Family::kTodi);
  reductions["none"] = int(kd::Reduction::kNone);
  reductions["sum"] = int(kd::Reduction::kSum);
  reductions["mean"] = int(kd::Reduction::kMean);
  slice_passes["statistics"] = int(kd::SlicePass::kStatistics);
  slice_passes["sums"] = int(kd::SlicePass::kSums);
  slice_passes["gradient"] = int(kd::SlicePass::kGradient);
  m.attr("DTYPES") = dtypes;
  m.attr("FAMILIES") = families;
  m.attr("REDUCTIONS") = reductions;
  m.attr("SLICE_PASSES") = slice_passes;
}
