// torch_host.cpp implements torch_host.h; setup.py compiles it only where there is CUDA.
#include "torch_host.h"

#include <cuda_runtime.h>
#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_torch/c/shim.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <tuple>

#include "driver.h"
#include "masks/masks.h"

namespace brnn::cuda {
namespace {

// These are used of libtorch_cuda: C functions, which stay the same from version to version.
struct TorchCuda {
  AOTITorchError (*current_stream)(int32_t device, void** stream);
  AOTITorchError (*bmm_out)(AtenTensorHandle out, AtenTensorHandle a, AtenTensorHandle b);
  AOTITorchError (*baddbmm_out)(AtenTensorHandle out, AtenTensorHandle self, AtenTensorHandle a,
                                AtenTensorHandle b, double beta, double alpha);

  TorchCuda() {
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    if (!library) throw std::runtime_error("torch: expected a build with CUDA, got one without");
    find(library, "aoti_torch_get_current_cuda_stream", current_stream);
    find(library, "aoti_torch_cuda_bmm_out", bmm_out);
    find(library, "aoti_torch_cuda_baddbmm_out", baddbmm_out);
  }

  template <class Function>
  static void find(void* library, const char* name, Function& function) {
    function = reinterpret_cast<Function>(dlsym(library, name));
    if (!function) checks::fail("torch", std::string("a version with ") + name, "another");
  }
};

const TorchCuda& torch_cuda() {
  static const TorchCuda functions;
  return functions;
}

int32_t code_of(Dtype dtype) {
  switch (dtype) {
    case Dtype::bfloat16: return aoti_torch_dtype_bfloat16();
    case Dtype::float16: return aoti_torch_dtype_float16();
    case Dtype::float32: return aoti_torch_dtype_float32();
    case Dtype::float64: return aoti_torch_dtype_float64();
  }
  throw std::logic_error("dtype: not one of dtypes.h");
}

// Gives the matrices as a tensor [batch, rows, columns] that does not own them.
Tensor view(const Matrix& m, Dtype dtype, int64_t batch, int64_t rows, int64_t columns,
            int device) {
  const int64_t sizes[3] = {batch, rows, columns};
  const int64_t strides[3] = {m.batch_stride, m.row_stride, m.column_stride};
  AtenTensorHandle handle;
  TORCH_ERROR_CODE_CHECK(aoti_torch_create_tensor_from_blob(
      const_cast<void*>(m.data), 3, sizes, strides, 0, code_of(dtype),
      aoti_torch_device_type_cuda(), device, &handle));
  return Tensor(handle);
}

// This is Host::multiply. cuBLAS's handle and workspace, and what a graph capture asks of them, are
// torch's.
void multiply(void* context, const Gemm& p) {
  const int device = static_cast<const Stream*>(context)->device();
  const Tensor a = view(p.a, p.dtype, p.batch, p.M, p.K, device);
  const Tensor b = view(p.b, p.dtype, p.batch, p.K, p.N, device);
  const Tensor c = view(p.c, p.dtype, p.batch, p.M, p.N, device);
  const AOTITorchError error =
      p.accumulate ? torch_cuda().baddbmm_out(c.get(), c.get(), a.get(), b.get(), 1.0, 1.0)
                   : torch_cuda().bmm_out(c.get(), a.get(), b.get());
  if (error != AOTI_TORCH_SUCCESS) checks::torch_failed("a matrix product", checks::Silent::other);
}

Device read_device(int index) {
  cudaDeviceProp properties;
  check(cudaGetDeviceProperties(&properties, index), "properties of the device");
  Device device{};
  device.name = properties.name;
  device.major = properties.major, device.minor = properties.minor;
  device.multiprocessors = properties.multiProcessorCount;
  device.shared_bytes_per_block = static_cast<int>(properties.sharedMemPerBlockOptin);
  device.registers_per_block = properties.regsPerBlock;
  device.cooperative_launch = properties.cooperativeLaunch;
  return device;
}

}  // namespace

const Device& device(int index) {
  static std::mutex mutex;
  static std::map<int, Device> devices;
  const std::lock_guard lock(mutex);
  const auto known = devices.find(index);
  return (known != devices.end() ? known : devices.emplace(index, read_device(index)).first)
      ->second;
}

Plan planned(const Problem& p, int index, const std::string& engine) {
  using Key = std::tuple<Cell, int64_t, int64_t, int64_t, int64_t, Precision, bool, bool, int, int,
                         int64_t, std::string>;
  static std::mutex mutex;
  static std::map<Key, Plan> plans;
  const Key key{p.cell,       p.T,        p.B,    p.I,   p.H,
                p.precision,  p.untied_h, p.save, index, backward_ahead(),
                grid_steps(), engine};
  const Device& limits = device(index);
  const std::lock_guard lock(mutex);
  const auto known = plans.find(key);
  if (known != plans.end()) return known->second;
  if (plans.size() >= 1000) plans.clear();  // sizes that never come again
  return plans.emplace(key, plan(p, limits, engine)).first->second;
}

Stream::Stream(const Tensor& tensor) : device_(tensor.get_device_index()), guard_(device_) {
  // The runtime that is linked in here has a current device of its own.
  check(cudaSetDevice(device_), "current device");
  TORCH_ERROR_CODE_CHECK(torch_cuda().current_stream(device_, &stream_));
}

Backend::Backend(Cell cell, const Tensor& x, const Options& options)
    : cell_(cell), x_(x), stream_(x), engine_(options.engine), precision_{}, save_(options.save) {
  with_storage_type<Backend>(
      x, [&](auto s) { precision_ = precision_of(DtypeOf<decltype(s)>::id, options.allow_tf32); });
}

void Backend::draw(const Tensor& seeds, const Draw& first, const Draw& second) {
  const Stream stream(seeds);
  masks::sample({first, second}, stream.get());
}

Tensor Backend::scratch(size_t bytes) const {
  return uninitialized(x_, {static_cast<int64_t>(bytes)}, aoti_torch_dtype_uint8());
}

Host Backend::host() const {
  return {.stream = stream_.get(), .context = const_cast<Stream*>(&stream_), .multiply = multiply};
}

}  // namespace brnn::cuda
