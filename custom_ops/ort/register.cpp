// What the library exports.
#include <map>
#include <mutex>
#include <string>
#include <utility>

#include "api.h"
#include "ops.h"

namespace skim {
namespace {

struct Registration {
  std::list<Op> ops;
  std::map<std::string, OrtCustomOpDomain*> domains;
};

// The domains of one runtime and one kind of kernel. The runtime keeps pointers to them in every session and never says
// when it is done, so they are made once and live as long as the process.
const Registration& GetRegistration(const OrtApi* api, const Kernels* kernels) {
  static std::mutex mutex;
  static auto& registrations = *new std::map<std::pair<const OrtApi*, const Kernels*>, Registration>();
  const std::lock_guard<std::mutex> lock(mutex);
  Registration& registration = registrations[{api, kernels}];
  if (registration.domains.empty()) {
    registration.ops.clear();
    AddOps(api, kernels, registration.ops);
    std::map<std::string, OrtCustomOpDomain*> domains;
    for (const Op& op : registration.ops) {
      OrtCustomOpDomain*& domain = domains[op.domain];
      if (domain == nullptr) Call(abi::CreateCustomOpDomain, api, op.domain, &domain);
      Call(abi::CustomOpDomain_Add, api, domain, &op);
    }
    registration.domains = std::move(domains);
  }
  return registration;
}

}  // namespace
}  // namespace skim

#define SKIM_EXPORT extern "C" __attribute__((visibility("default")))

// Names of the kernels that this CPU can run, the fastest first, with spaces between them.
SKIM_EXPORT const char* SkimKernelNames() {
  static const std::string names = [] {
    std::string list;
    for (const skim::Kernels* kernels : skim::AvailableKernels())
      list += (list.empty() ? "" : " ") + std::string(kernels->name);
    return list;
  }();
  return names.c_str();
}

// Registers all operators with the session options; called by the runtime's RegisterCustomOpsLibrary.
SKIM_EXPORT OrtStatus* RegisterCustomOps(OrtSessionOptions* options, const OrtApiBase* base) {
  using namespace skim;
  const OrtApi* api = base->GetApi(abi::kApiVersion);
  if (api == nullptr) {
    // Registering nothing would let the model run on its slow fallback without a word. CreateStatus has been in slot 0
    // since API 1.
    const std::string message = "libskim_ops needs ONNX Runtime 1." + std::to_string(abi::kApiVersion) +
                                " or newer, this is " + base->GetVersionString();
    return abi::CreateStatus(base->GetApi(1), abi::kFail, message.c_str());
  }
  return Guarded(api, [&] {
    const Kernels* kernels = SelectKernels();
    if (kernels == nullptr) {
      throw InvalidArgument(std::string("the environment variable SKIM_KERNEL must be unset or name a kernel that this "
                                        "CPU can run: ") +
                            SkimKernelNames());
    }
    for (const auto& [name, domain] : GetRegistration(api, kernels).domains) {
      Call(abi::AddCustomOpDomain, api, options, domain);
    }
  });
}

// Name of the kernels that a registration now would use; null if SKIM_KERNEL has an invalid value.
SKIM_EXPORT const char* SkimKernelName() {
  const skim::Kernels* kernels = skim::SelectKernels();
  return kernels == nullptr ? nullptr : kernels->name;
}

// The version of CUDA, such as 13000, that the kernels for GPUs are built with; 0 if the library has none.
SKIM_EXPORT int SkimCudaVersion() { return skim::CudaVersion(); }
