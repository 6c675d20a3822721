"""WGSL kernels on any device that wgpu finds, software ones included."""

import wgpu

from skim_export.bundle.gpu.kernel_list import load_kernel_list

STORAGE = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC


class OnWgpu:
    """The kernels of a bundle in WGSL."""

    def __init__(self, directory, device):
        self.kernels = load_kernel_list(directory)
        self._directory, self._device = directory, device
        self._pipelines = {}

    def run(self, launch, buffers):
        """Launch a kernel on numpy arrays, by the names of the arguments; those that it writes to are read back."""
        entry = launch.kernel
        names = [a.name for a in entry.arguments if a.elements is not None]
        scalars = [launch.scalars[a.name] for a in entry.arguments if a.elements is None]
        on_device = [self._device.create_buffer_with_data(data=buffers[name], usage=STORAGE) for name in names]
        uniform = memoryview(b"".join(v.to_bytes(4, "little") for v in (*scalars, launch.workgroups[0])))
        resources = [*on_device, self._device.create_buffer_with_data(data=uniform, usage=wgpu.BufferUsage.UNIFORM)]
        pipeline = self._pipeline(entry)
        bindings = [{"binding": i, "resource": {"buffer": b}} for i, b in enumerate(resources)]
        group = self._device.create_bind_group(layout=pipeline.get_bind_group_layout(0), entries=bindings)
        encoder = self._device.create_command_encoder()
        compute = encoder.begin_compute_pass()
        compute.set_pipeline(pipeline)
        compute.set_bind_group(0, group)
        along_x, *along_y = launch.workgroups
        # Folded, as a grid of more than 65535 along x would have to be; a surplus workgroup must do nothing.
        compute.dispatch_workgroups(-(-along_x // 2), *(along_y or [1]), 2)
        compute.end()
        self._device.queue.submit([encoder.finish()])
        for argument, buffer in zip(entry.arguments, on_device, strict=False):
            if argument.written:
                array = buffers[argument.name]
                array[...] = self._device.queue.read_buffer(buffer).cast(array.dtype.char, array.shape)

    def _pipeline(self, entry):
        if entry.name not in self._pipelines:
            module = self._device.create_shader_module(code=(self._directory / entry.source).read_text())
            stage = {"module": module, "entry_point": entry.entry_point}
            self._pipelines[entry.name] = self._device.create_compute_pipeline(layout="auto", compute=stage)
        return self._pipelines[entry.name]
