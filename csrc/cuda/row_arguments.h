// What the row kernels are launched with.
#pragma once

#include <cstdint>

namespace kd {

struct RowArguments {
  int64_t rows, student_stride, teacher_stride, grad_stride;  // strides in elements
  int columns, width;
  const void* student;
  const void* teacher;
  void* grad;  // null: values only
  const float* weight;
  const float* upstream;
  const float* normalizer;
  float* value;
  float* student_entropy;
  float* teacher_entropy;
  float rate_student, rate_teacher;  // log2(e) / T
  float k;                           // 1 / T of the student
  float ratio;                       // T of the student / T of the teacher
  float scale;
  float a, b;       // the family's parameters
  float curvature;  // f''(1) of the divergence, its ratio to the KL where the sides are close
  int key_bits;     // leading bits in which the float keys of two of the teacher's logits can differ
  bool half;        // entries of 16 bits are float16, not bfloat16
  int slice;        // vectors of a row that a block of the cluster holds
};

}  // namespace kd
