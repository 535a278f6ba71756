in vec3 position;
#ifdef NORMALS
in vec3 normal;
out vec3 frag_normal;
#endif
#ifdef BASE_TEXTURE
in vec2 uv;
FROM_VERTEX out vec2 frag_uv;
#endif
#ifdef GLOW_TEXTURE
in vec2 glow_uv;
FROM_VERTEX out vec2 frag_glow_uv;
#endif
#ifdef COLORS
in vec4 color;
FROM_VERTEX out vec4 frag_color;
#endif
out vec3 frag_position;

uniform mat4 camera;  // world to clip space
uniform float back;   // how far depth is moved, of 2

void main()
{
    gl_Position = camera * vec4(position, 1.0);
    // Half of the depth range is for fronts, so that what is seen only beside them can be moved behind all of them.
    gl_Position.z = 0.5 * gl_Position.z + (back - 0.5) * gl_Position.w;
    frag_position = position;
#ifdef NORMALS
    frag_normal = normal;
#endif
#ifdef BASE_TEXTURE
    frag_uv = uv;
#endif
#ifdef GLOW_TEXTURE
    frag_glow_uv = glow_uv;
#endif
#ifdef COLORS
    frag_color = color;
#endif
}
